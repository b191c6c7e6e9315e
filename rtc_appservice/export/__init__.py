"""Stage 6: what leaves the deployment, as PostHog events and as Prometheus metrics."""
