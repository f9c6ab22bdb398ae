"""What is read in captions: disguised spellings, lexicons, patterns."""
