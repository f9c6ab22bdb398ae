"""What a dataset says of itself: croissant.json for programs, README.md for people; both follow from card.json."""
