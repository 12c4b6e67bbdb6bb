"""The adapters behind the ports: object store, ledger, manifests, Segmind."""
