"""What owners of images say about crawling and training, read before a request and in its answer."""
