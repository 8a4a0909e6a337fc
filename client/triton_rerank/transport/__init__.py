"""How a call talks to Triton over gRPC: connections, messages, retries, choice of server, tracing."""
