"""brokerd: generic connection brokering, as an ordinary user (Son & Livny 2003, section 4)."""
