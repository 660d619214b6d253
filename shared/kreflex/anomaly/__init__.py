"""Anomalies: what a cluster's metrics say is wrong, with a stated number of false alarms."""
