"""Where commands go: the table of routes, the two kinds of services behind them, and the public authentication."""
