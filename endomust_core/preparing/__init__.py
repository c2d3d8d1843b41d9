"""What `endomust prepare` is made of: the raw trees that need more than opening, the writer, and the self-checks."""
