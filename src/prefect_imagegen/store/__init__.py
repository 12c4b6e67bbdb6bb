"""Object stores, and what lies in them."""
