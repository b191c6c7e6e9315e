"""Everything on one machine: a real homeserver, simulated call clients, a stand-in for PostHog."""
