"""Long-lived streams of signed events: the hub that decides, and the transports that carry them."""
