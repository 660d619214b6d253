"""Worked examples of detectors: scikit-learn, river, and a model behind KServe's V2 protocol."""
