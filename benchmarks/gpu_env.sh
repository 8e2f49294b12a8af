# Sourced by gpu.sh and its like at the root of the checkout: finds vgsplus and the wheels in .wheels.
export PYTHONPATH=$PWD/src PYTHONUNBUFFERED=1 CUBLAS_WORKSPACE_CONFIG=:4096:8
if [ -d .wheels ]; then
	site=$(mktemp -d)
	python3 -m pip install --quiet --no-index --no-deps --no-compile --target "$site" .wheels/*.whl
	PYTHONPATH=$PYTHONPATH:$site
fi
