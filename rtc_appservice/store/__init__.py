"""
Stage 3: PostgreSQL. All SQL, and the only use of asyncpg.

A function takes the connection; the caller owns the transaction.
"""
