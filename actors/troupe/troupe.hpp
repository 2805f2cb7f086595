#pragma once

// Everything a training program needs. Small programs include this; larger ones include what they use.
#include <troupe/accelerate_config.hpp>
#include <troupe/accelerator.hpp>
#include <troupe/config.hpp>
#include <troupe/torch_trainer.hpp>
