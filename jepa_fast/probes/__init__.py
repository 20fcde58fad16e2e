"""What frozen features are worth: linear and attentive probes, nearest neighbours, and pictures of the features."""
