"""What becomes of a trained model: exported, registered, judged, told."""
