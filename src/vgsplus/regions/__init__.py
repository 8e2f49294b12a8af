"""The region features of pictures: computed, collected, stored and read."""
