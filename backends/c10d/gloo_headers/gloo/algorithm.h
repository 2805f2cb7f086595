#pragma once
// Ours: see context.h.
