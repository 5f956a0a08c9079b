"""The only rooms of dpfd that touch the kernel: firewall tables, interfaces, ports in use."""
