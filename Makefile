# What is done to a whole checkout. `ci/test` runs everything that must pass; tests/deploy/* need root and more time.

.PHONY: image base-image

# The image karman:local. Pulls rust:1.95-bookworm, which deploy/docker/Dockerfile names, unless it is there.
image:
	docker build --tag karman:local --file deploy/docker/Dockerfile .

# For a machine that cannot pull: makes what `image` would pull.
base-image:
	deploy/docker/base-image
