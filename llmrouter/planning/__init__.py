"""What the traffic asks of the pools: pure estimates from what routers know, before an answer exists."""
