"""dpfd: dynamic port forwarding on a NAT gateway (Son & Livny 2003, section 3)."""
