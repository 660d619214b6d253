"""What senders send, turned into signals. Nothing here decides or reads the cluster."""
