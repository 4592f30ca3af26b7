"""What a training needs, before anything is downloaded."""
