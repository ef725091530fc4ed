"""From files to batches: ``datasets`` finds, decodes and augments images, ``loader`` orders and delivers them."""
