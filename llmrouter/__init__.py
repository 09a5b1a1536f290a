"""The library that the routers, the operator, the simulator and the testbed share."""
