"""What a study made, pushed to a hub with a card: a student, or annotations."""
