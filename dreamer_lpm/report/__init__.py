"""What a run leaves behind: metrics, progress on screen, videos, curves, a summary. No torch here."""
