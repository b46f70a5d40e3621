"""What the KV of a teacher and a base student is like before anything is trained, and what a cosine would mean."""
