#include <troupe/errors.hpp>

namespace troupe {

std::string_view name(Errc code) noexcept {
  switch (code) {
    case Errc::Ok: return "Ok";
    case Errc::InvalidArgument: return "InvalidArgument";
    case Errc::InvalidConfig: return "InvalidConfig";
    case Errc::FileNotFound: return "FileNotFound";
    case Errc::FileCorrupt: return "FileCorrupt";
    case Errc::StorageUnavailable: return "StorageUnavailable";
    case Errc::DataMalformed: return "DataMalformed";
    case Errc::TrainFunctionFailed: return "TrainFunctionFailed";
    case Errc::RankExited: return "RankExited";
    case Errc::RankKilled: return "RankKilled";
    case Errc::DeadlinePassed: return "DeadlinePassed";
    case Errc::Aborted: return "Aborted";
    case Errc::CollectiveMismatch: return "CollectiveMismatch";
    case Errc::ProtocolError: return "ProtocolError";
    case Errc::StartFailed: return "StartFailed";
    case Errc::Cancelled: return "Cancelled";
    case Errc::NotFound: return "NotFound";
    case Errc::AlreadyExists: return "AlreadyExists";
    case Errc::Unsupported: return "Unsupported";
    case Errc::Internal: return "Internal";
    case Errc::OutOfMemory: return "OutOfMemory";
    case Errc::DeviceFailed: return "DeviceFailed";
    case Errc::DeviceLost: return "DeviceLost";
    case Errc::NetworkFailed: return "NetworkFailed";
    case Errc::NodeLost: return "NodeLost";
  }
  return "Unknown";
}

std::string_view explain(Errc code) noexcept {
  switch (code) {
    case Errc::Ok: return "nothing went wrong";
    case Errc::InvalidArgument: return "an argument is out of range; see the text for the range";
    case Errc::InvalidConfig: return "the configuration has a wrong key or value; correct it and start again";
    case Errc::FileNotFound: return "a file is missing; check the path";
    case Errc::FileCorrupt: return "a file is damaged or of another format; fetch or write it again";
    case Errc::StorageUnavailable: return "storage cannot be written; check permissions and free space";
    case Errc::DataMalformed: return "a row of the data cannot be read; correct the named line";
    case Errc::TrainFunctionFailed: return "the train function threw; its message names the cause";
    case Errc::RankExited: return "a rank's process ended early; see its last lines";
    case Errc::RankKilled: return "a rank's process was killed; memory pressure is the usual cause";
    case Errc::DeadlinePassed: return "somebody did not come in time; the text names who";
    case Errc::Aborted: return "the run was ended from outside";
    case Errc::CollectiveMismatch: return "ranks called different collectives; the text lists each rank's call";
    case Errc::ProtocolError: return "a peer sent invalid bytes or speaks another version";
    case Errc::StartFailed: return "a rank could not be started; check limits and the program's path";
    case Errc::Cancelled: return "stopped on request";
    case Errc::NotFound: return "a named thing does not exist; the text lists what does";
    case Errc::AlreadyExists: return "it is already there; choose another name or resume";
    case Errc::Unsupported: return "this build or machine cannot do that; the text says what can";
    case Errc::Internal: return "a bug in Troupe; please report it with the text";
    case Errc::OutOfMemory: return "memory ran out; make batches smaller, shard or offload more, or give it more memory";
    case Errc::DeviceFailed: return "a GPU call failed and the process cannot use the GPU any more; the text names the call";
    case Errc::DeviceLost: return "a GPU is damaged or gone; look at nvidia-smi and the kernel's log for Xid messages";
    case Errc::NetworkFailed: return "the connection between ranks' GPUs broke; look at the other ranks first, then at the network";
    case Errc::NodeLost: return "a node is gone, hangs, or cannot be reached; see its agent's log and the network";
  }
  return "unknown error code";
}

}  // namespace troupe
