raise ValueError("a secret")
