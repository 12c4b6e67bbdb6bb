"""Commands that look after a store: doctor, verify, resend, reconcile, status."""
