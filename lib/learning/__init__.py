"""Learn one task within a budget: training, learners, probes, search, the ledger."""
