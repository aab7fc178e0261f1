"""Who may speak to the edge: sessions, signed envelopes, their checks in order, and what the gateway signs itself."""
