"""The one training loop, and the adapters it trains."""
