"""PostHog dashboards as code: what they show (`*.json`), whether that can work (`check`), putting it there (`sync`)."""
