// Every CUDA implementation, for the registry.
#pragma once

#include "cuda/decode/decode.h"
#include "cuda/merge/merge.h"
