"""Work that many machines share, on engines that people run already: Ray (the extra `ray`)."""
