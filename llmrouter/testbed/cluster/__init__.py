"""A real Kubernetes on one machine, for tests and the demo: its programs, control plane, node and images."""
