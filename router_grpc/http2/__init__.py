"""The server's side of HTTP/2 and of gRPC over it, without a transport: bytes in, bytes out (RFC 9113, RFC 7541)."""
