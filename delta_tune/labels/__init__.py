"""What an image's labels are: one class, or any number of them. All that differs between the two is here."""
