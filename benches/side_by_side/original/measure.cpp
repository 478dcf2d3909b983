// The measuring program of the side-by-side benchmark for the original: the C++ client of Apache
// Arrow Plasma 11, as the wheel of pyarrow 11 brings it. Answers the same questions in the same way
// as `ours`, which says how (in its `main.rs`); each work here does what its namesake does there.

#include <sys/socket.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <functional>
#include <iostream>
#include <memory>
#include <mutex>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "arrow/io/memory.h"
#include "plasma/client.h"

namespace {

using Steady = std::chrono::steady_clock;
using Samples = std::vector<int64_t>;
using plasma::ObjectBuffer;
using plasma::ObjectID;
using plasma::PlasmaClient;

// As in `ours`: see there.
constexpr int64_t kReadBytes = 64 << 20;
constexpr int64_t kBatch = 1000;
constexpr auto kUntilAsleep = std::chrono::microseconds(500);
constexpr auto kBetweenPings = std::chrono::microseconds(50);

// What pyarrow takes by default, and from where on CreateAndSeal, which sends the bytes through the
// socket, is no longer the quickest way.
constexpr int kCopyThreads = 6;
constexpr int64_t kInlineBytes = 4096;

void Check(const Status& status) {
  if (!status.ok()) throw std::runtime_error(status.ToString());
}

int64_t NanosSince(Steady::time_point start) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(Steady::now() - start).count();
}

std::vector<ObjectID> NewIds(int64_t count) {
  static std::mt19937_64 random(std::random_device{}());
  std::vector<ObjectID> ids;
  ids.reserve(count);
  for (int64_t i = 0; i < count; ++i) {
    std::string bytes;
    for (int j = 0; j < plasma::kUniqueIDSize; ++j) bytes += static_cast<char>(random());
    ids.push_back(ObjectID::from_binary(bytes));
  }
  return ids;
}

Samples Each(int64_t count, const std::function<void(int64_t)>& operation) {
  Samples samples;
  samples.reserve(count);
  for (int64_t i = 0; i < count; ++i) {
    auto start = Steady::now();
    operation(i);
    samples.push_back(NanosSince(start));
  }
  return samples;
}

class Works {
 public:
  explicit Works(const std::string& socket) : socket_(socket) {
    Check(maker_.Connect(socket));
    Check(reader_.Connect(socket));
  }

  Samples Work(const std::string& work, int64_t count, int64_t size) {
    if (static_cast<int64_t>(payload_.size()) < size) {
      payload_.resize(size, 'x');
    }
    if (work == "contains") return Contains(count);
    if (work == "create_seal") return CreateSeal(count, size);
    if (work == "put") return Put(count, size);
    if (work == "get") return Get(count, size, /*held=*/false);
    if (work == "get_held") return Get(count, size, /*held=*/true);
    if (work == "get_batch") return GetBatch(count, size);
    if (work == "wake") return Wake(count);
    if (work == "fill") return Fill(count, size);
    if (work == "warm") return Warm(count, size);
    if (work == "list") return Each(count, [&](int64_t) { List(&reader_); });
    if (work == "subscribe") return Each(count, [&](int64_t) { Subscribe(size); });
    if (work == "crowd") return Crowd(count, size);
    if (work == "idle") return Idle(count);
    if (work.rfind("ping_", 0) == 0) return PingDuring(work.substr(5), count, size);
    throw std::runtime_error(work + " is not known here");
  }

 private:
  Samples Contains(int64_t count) {
    auto ids = Sealed(std::min(count, kBatch), 1);
    auto samples = Each(count, [&](int64_t i) {
      bool found = false;
      Check(reader_.Contains(ids[i % ids.size()], &found));
      if (!found) throw std::runtime_error("not there");
    });
    Delete(ids);
    return samples;
  }

  // Seal keeps the creator's hold here; that of ours lets go as well, so this does.
  void CreateAndSeal(const ObjectID& id, int64_t size) {
    std::shared_ptr<Buffer> data;
    Check(maker_.Create(id, size, nullptr, 0, &data));
    if (size <= kInlineBytes) {
      std::memcpy(data->mutable_data(), payload_.data(), size);
    } else {
      arrow::io::FixedSizeBufferWriter writer(data);
      writer.set_memcopy_threads(kCopyThreads);
      Check(writer.Write(payload_.data(), size));
    }
    Check(maker_.Seal(id));
    Check(maker_.Release(id));
  }

  Samples CreateSeal(int64_t count, int64_t size) {
    auto ids = NewIds(count);
    auto samples = Each(count, [&](int64_t i) { CreateAndSeal(ids[i], size); });
    Delete(ids);
    return samples;
  }

  Samples Put(int64_t count, int64_t size) {
    const std::string data = size <= kInlineBytes ? payload_.substr(0, size) : std::string();
    const int64_t together = std::clamp<int64_t>(kReadBytes / std::max<int64_t>(size, 1), 1, kBatch);
    Samples samples;
    for (int64_t done = 0; done < count; done += together) {
      auto ids = NewIds(std::min(together, count - done));
      auto part = Each(ids.size(), [&](int64_t i) {
        if (size <= kInlineBytes) {
          Check(maker_.CreateAndSeal(ids[i], data, ""));
        } else {
          CreateAndSeal(ids[i], size);
        }
      });
      samples.insert(samples.end(), part.begin(), part.end());
      Delete(ids);
    }
    return samples;
  }

  Samples Get(int64_t count, int64_t size, bool held) {
    const int64_t most = std::clamp<int64_t>(kReadBytes / std::max<int64_t>(size, 1), 1,
                                             std::min(count, kBatch));
    auto ids = Sealed(held ? 1 : most, size);
    std::vector<ObjectBuffer> hold;
    if (held) Check(reader_.Get({ids[0]}, -1, &hold));
    auto samples = Each(count, [&](int64_t i) {
      std::vector<ObjectBuffer> buffers;
      Check(reader_.Get({ids[i % ids.size()]}, -1, &buffers));
      Touch(buffers[0]);
    });
    hold.clear();
    Delete(ids);
    return samples;
  }

  static void Touch(const ObjectBuffer& buffer) {
    if (!buffer.data) throw std::runtime_error("not there");
    volatile uint8_t first = *buffer.data->data();
    (void)first;
  }

  Samples GetBatch(int64_t count, int64_t size) {
    auto ids = Sealed(size, 1000);
    auto samples = Each(count, [&](int64_t) {
      std::vector<ObjectBuffer> buffers;
      Check(reader_.Get(ids, -1, &buffers));
      Touch(buffers.back());
    });
    Delete(ids);
    return samples;
  }

  Samples Wake(int64_t count) {
    auto ids = NewIds(count);
    // Not looked at again and again: both cores are for the store and the one that waits.
    std::mutex mutex;
    std::condition_variable changed;
    int64_t woken = 0;
    std::vector<Steady::time_point> at(count);
    std::thread waiter([&] {
      for (int64_t i = 0; i < count; ++i) {
        std::vector<ObjectBuffer> buffers;
        Check(reader_.Get({ids[i]}, -1, &buffers));
        at[i] = Steady::now();
        std::lock_guard<std::mutex> lock(mutex);
        woken = i + 1;
        changed.notify_one();
      }
    });
    Samples samples;
    for (int64_t i = 0; i < count; ++i) {
      std::shared_ptr<Buffer> data;
      Check(maker_.Create(ids[i], 1, nullptr, 0, &data));
      data->mutable_data()[0] = 1;
      std::this_thread::sleep_for(kUntilAsleep);
      auto sealed = Steady::now();
      Check(maker_.Seal(ids[i]));
      Check(maker_.Release(ids[i]));
      std::unique_lock<std::mutex> lock(mutex);
      changed.wait(lock, [&] { return woken > i; });
      samples.push_back(
          std::chrono::duration_cast<std::chrono::nanoseconds>(at[i] - sealed).count());
    }
    waiter.join();
    Delete(ids);
    return samples;
  }

  Samples Fill(int64_t count, int64_t size) {
    auto ids = NewIds(count);
    auto start = Steady::now();
    Keep(ids, size);
    return {NanosSince(start)};
  }

  Samples Warm(int64_t count, int64_t size) {
    auto ids = NewIds(count);
    auto start = Steady::now();
    Keep(ids, size);
    const int64_t nanos = NanosSince(start);
    Delete(ids);
    return {nanos};
  }

  static int64_t List(PlasmaClient* client) {
    plasma::ObjectTable objects;
    Check(client->List(&objects));
    return static_cast<int64_t>(objects.size());
  }

  void Subscribe(int64_t size) {
    PlasmaClient client;
    Check(client.Connect(socket_));
    int fd = -1;
    Check(client.Subscribe(&fd));
    for (int64_t i = 0; i < size; ++i) {
      ObjectID id;
      int64_t data_size = 0, metadata_size = 0;
      Check(client.GetNotification(fd, &id, &data_size, &metadata_size));
    }
    shutdown(fd, SHUT_RDWR);
    Check(client.Disconnect());
  }

  Samples Crowd(int64_t count, int64_t clients) {
    const int64_t each = std::max<int64_t>(count / clients, 1);
    std::vector<std::unique_ptr<PlasmaClient>> all;
    auto ids = NewIds(clients);
    for (const auto& id : ids) {
      all.push_back(std::make_unique<PlasmaClient>());
      Check(all.back()->Connect(socket_));
      Check(maker_.CreateAndSeal(id, std::string(1000, 'x'), ""));
    }
    std::atomic<int64_t> ready{0};
    std::atomic<bool> begin{false};
    std::vector<std::thread> threads;
    for (int64_t c = 0; c < clients; ++c) {
      threads.emplace_back([&, c] {
        ready.fetch_add(1);
        while (!begin.load()) std::this_thread::yield();
        for (int64_t i = 0; i < each; ++i) {
          std::vector<ObjectBuffer> buffers;
          Check(all[c]->Get({ids[c]}, -1, &buffers));
          Touch(buffers[0]);
        }
      });
    }
    while (ready.load() < clients) std::this_thread::yield();
    auto start = Steady::now();
    begin.store(true);
    for (auto& thread : threads) thread.join();
    const int64_t nanos = NanosSince(start);
    for (auto& client : all) Check(client->Disconnect());
    Delete(ids);
    return {nanos / (each * clients)};
  }

  Samples Idle(int64_t count) {
    while (static_cast<int64_t>(idle_.size()) > count) {
      Check(idle_.back()->Disconnect());
      idle_.pop_back();
    }
    while (static_cast<int64_t>(idle_.size()) < count) {
      idle_.push_back(std::make_unique<PlasmaClient>());
      Check(idle_.back()->Connect(socket_));
    }
    return {};
  }

  Samples PingDuring(const std::string& heavy, int64_t count, int64_t size) {
    std::atomic<bool> is_done{false};
    Samples samples;
    std::thread pings([&] {
      const ObjectID id = NewIds(1)[0];
      while (!is_done.load()) {
        bool found = false;
        auto start = Steady::now();
        Check(reader_.Contains(id, &found));
        samples.push_back(NanosSince(start));
        std::this_thread::sleep_for(kBetweenPings);
      }
    });
    std::string problem;
    try {
      for (int64_t i = 0; i < count; ++i) Heavy(heavy, size);
    } catch (const std::exception& error) {
      problem = error.what();
    }
    is_done.store(true);
    pings.join();
    if (!problem.empty()) throw std::runtime_error(problem);
    return samples;
  }

  void Heavy(const std::string& heavy, int64_t size) {
    if (heavy == "put") {
      auto ids = NewIds(1);
      CreateAndSeal(ids[0], size);
      Delete(ids);
    } else if (heavy == "list") {
      List(&maker_);
    } else if (heavy == "evict") {
      int64_t evicted = 0;
      Check(maker_.Evict(size, evicted));
    } else if (heavy == "subscribe") {
      Subscribe(size);
    } else {
      throw std::runtime_error(heavy + " is not known here");
    }
  }

  std::vector<ObjectID> Sealed(int64_t count, int64_t size) {
    auto ids = NewIds(count);
    Keep(ids, size);
    return ids;
  }

  void Keep(const std::vector<ObjectID>& ids, int64_t size) {
    if (size > kInlineBytes) {
      for (const auto& id : ids) CreateAndSeal(id, size);
      return;
    }
    for (size_t done = 0; done < ids.size(); done += kBatch) {
      auto end = ids.begin() + std::min<size_t>(done + kBatch, ids.size());
      std::vector<ObjectID> part(ids.begin() + done, end);
      std::vector<std::string> data(part.size(), std::string(size, 'x'));
      Check(maker_.CreateAndSealBatch(part, data, std::vector<std::string>(part.size())));
    }
  }

  void Delete(const std::vector<ObjectID>& ids) { Check(maker_.Delete(ids)); }

  std::string socket_;
  PlasmaClient maker_;
  PlasmaClient reader_;
  std::vector<std::unique_ptr<PlasmaClient>> idle_;
  std::string payload_;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: measure SOCKET\n";
    return 2;
  }
  Works works(argv[1]);
  std::string line;
  while (std::getline(std::cin, line)) {
    std::istringstream words(line);
    std::string work;
    int64_t count = 0, size = 0;
    words >> work >> count >> size;
    std::ostringstream answer;
    try {
      Samples samples = works.Work(work, count, size);
      answer << "ok";
      for (int64_t sample : samples) answer << ' ' << sample;
    } catch (const std::exception& error) {
      std::string reason = error.what();
      std::replace(reason.begin(), reason.end(), '\n', ' ');
      answer << "no " << reason;
    }
    std::cout << answer.str() << std::endl;
  }
  return 0;
}
