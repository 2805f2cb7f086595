#pragma once

// Troupe's messages as CAF sees them. They travel inside one process only, so CAF never serialises them
// (its 0.17 packing loses NaN and infinity); between processes the link carries them in its own frames.

#include <troupe/messages.hpp>

#include <caf/allowed_unsafe_message_type.hpp>

CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::RunRank)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::CountForStop)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::StopAfter)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::BarrierPassed)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::AbortRank)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::SeatOpened)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::SeatsKnown)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::RankStarted)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::Reported)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::CheckpointWritten)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::Progressed)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::BarrierReached)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::StopCounted)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::RankDone)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::RankLost)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::StartGroup)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::StopGroup)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::FindPlaces)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::PlacesFound)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::AbortGroup)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::GroupStarted)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::GroupEnded)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::StopRun)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::ResizeRun)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::MoveRanks)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::RunStarted)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::ReportArrived)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::CheckpointCommitted)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::CheckpointFailed)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::CheckpointUploaded)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::RunWarning)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::RunEnded)
