"""The adversary against a queue API without request history, uploads and balance: the provider of docs/extend."""
