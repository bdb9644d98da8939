"""Speed: what each part costs here, and beside the official iVideoGPT code (docs/performance.md)."""
