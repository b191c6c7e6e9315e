"""Alembic's entry: runs the migrations on the connection it is handed, each in a transaction of its own."""

from alembic import context

#: A migration that cannot get its lock gives up rather than queue every reader and writer behind it.
LOCK_TIMEOUT = "10s"


def run() -> None:
    """Run on `config.attributes["connection"]`, or print the SQL when Alembic is offline."""
    connection = context.config.attributes.get("connection")
    if connection is None:
        context.configure(dialect_name="postgresql", literal_binds=True)
        with context.begin_transaction():
            context.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")
            context.run_migrations()
        return
    context.configure(connection=connection, transaction_per_migration=True)
    with context.begin_transaction():
        connection.exec_driver_sql(f"SET lock_timeout = '{LOCK_TIMEOUT}'")
        context.run_migrations()


run()
