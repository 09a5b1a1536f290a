"""The endpoint-picker protocol without a transport: what a gateway's messages mean, and what is answered."""
