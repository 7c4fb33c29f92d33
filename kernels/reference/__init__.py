"""Plain torch implementations: exact, readable, and the truth that faster backends are tested against."""
