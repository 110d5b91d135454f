// The monitor's end of the attach protocol, with a mount that is silent, busy, dead or strange:
// every thread that waits for the mount gets an error in the end, and memory that was frozen for it
// continues. One file, because all tests share one stand-in for the mount (class Mount) and one
// image.
#include "monitor/attachment.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <atomic>
#include <csignal>
#include <cstring>
#include <functional>
#include <set>
#include <thread>

#include "check.h"

using namespace pcow;

namespace {

constexpr uint64_t kSize = 1 << 20;
constexpr Session::Limits kLimits = {1 << 20, 100};
// alarm(2) ends a test that hangs. A thread that waits longer than this has hung.
constexpr unsigned kHungSeconds = 120;
constexpr Patience kNever = {10 * 60 * 1000, 10 * 60 * 1000};

// A mount, as far as the monitor sees it through the socket.
class Mount {
 public:
  explicit Mount(const std::string& path, int backlog = 8) : path_(path) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    CHECK(path.size() < sizeof address.sun_path);
    memcpy(address.sun_path, path.data(), path.size());
    listener_ = protocol::Descriptor(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    CHECK(bind(listener_.number(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
    CHECK(listen(listener_.number(), backlog) == 0);
  }
  ~Mount() { unlink(path_.c_str()); }

  // Waits for a connection, and for its first message.
  void meet(protocol::Kind kind) {
    peer_ = protocol::Descriptor(accept4(listener_.number(), nullptr, nullptr, SOCK_CLOEXEC));
    CHECK(peer_);
    CHECK(hear().kind == kind);
  }

  protocol::Packet hear() {
    pollfd ready = {peer_.number(), POLLIN, 0};
    CHECK(poll(&ready, 1, -1) == 1);
    protocol::Packet packet;
    std::string reason;
    CHECK(protocol::receive_packet(peer_.number(), 1, &packet, &reason) ==
          protocol::Received::kPacket);
    return packet;
  }

  void say(const protocol::Packet& packet) { CHECK(protocol::send_packet(peer_.number(), packet)); }

  // Skips the monitor's own questions.
  protocol::Kind hear_answer() {
    for (;;) {
      const protocol::Kind kind = hear().kind;
      if (kind != protocol::Kind::kWant) return kind;
    }
  }

  // Sends a request, which is answered by kDone.
  void ask(protocol::Kind kind, const std::string& text = {}) {
    CHECK(answer_to(kind, text) == protocol::Kind::kDone);
  }
  // Sends a request that is out of order, which is answered by kFailed.
  void ask_in_vain(protocol::Kind kind) { CHECK(answer_to(kind, "s") == protocol::Kind::kFailed); }

  void wait_for_end() {
    pollfd ready = {peer_.number(), POLLIN, 0};
    CHECK(poll(&ready, 1, -1) == 1);
    protocol::Packet packet;
    std::string reason;
    CHECK(protocol::receive_packet(peer_.number(), 1, &packet, &reason) ==
          protocol::Received::kEnd);
  }

  // Takes the image back. A request crosses the monitor's kRelease: the monitor no longer has
  // anything to do with it.
  void take_back() {
    CHECK(hear().kind == protocol::Kind::kRelease);
    protocol::Packet crossing;
    crossing.kind = protocol::Kind::kPrepare;
    crossing.text = "s";
    say(crossing);
    const protocol::Packet said = hear();
    CHECK(said.kind == protocol::Kind::kFailed && said.value == ESHUTDOWN);
    protocol::Packet released;
    released.kind = protocol::Kind::kReleased;
    say(released);
    wait_for_end();
  }

  void die() {
    peer_.reset();
    listener_.reset();
    unlink(path_.c_str());
  }

 private:
  protocol::Kind answer_to(protocol::Kind kind, const std::string& text) {
    protocol::Packet request;
    request.kind = kind;
    request.text = text;
    say(request);
    return hear_answer();
  }

  const std::string path_;
  protocol::Descriptor listener_;
  protocol::Descriptor peer_;
};

struct Stage {
  TemporaryDirectory directory;
  std::string image = directory / "image.pcow";
  std::string socket = directory / "socket";
  int flat_file = open("/dev/null", O_RDWR | O_CLOEXEC);

  Stage() {
    CreateOptions options;
    options.size = kSize;
    MUST(create_image(image, options));
  }
  ~Stage() { close(flat_file); }

  // The image with the writer's lock, as a mount hands it over.
  protocol::Packet image_with_lock() const { return image_with_lock(image); }
  static protocol::Packet image_with_lock(const std::string& path) {
    protocol::Packet answer;
    answer.kind = protocol::Kind::kAttached;
    answer.text = path + '\0';
    answer.descriptors.emplace_back(open(path.c_str(), O_RDWR | O_CLOEXEC));
    const struct flock whole = {F_WRLCK, SEEK_SET, 0, 0, 0};
    CHECK(fcntl(answer.descriptors.front().number(), F_OFD_SETLK, &whole) == 0);
    return answer;
  }

  Result<std::shared_ptr<Attachment>> attach(const Patience& patience, bool write = true) const {
    return Attachment::attach(socket, flat_file, write, 0, kLimits, patience);
  }

  std::shared_ptr<Attachment> attached(Mount* mount, const Patience& patience) const {
    std::thread handing_over([&] {
      mount->meet(protocol::Kind::kAttach);
      mount->say(image_with_lock());
    });
    auto attachment = MUST(attach(patience));
    handing_over.join();
    return attachment;
  }

  // `answer` makes the message that the mount sends instead.
  void refuses(const char* what, const std::function<protocol::Packet()>& answer,
               int expected) const {
    Mount mount(socket);
    std::thread answering([&] {
      mount.meet(protocol::Kind::kAttach);
      mount.say(answer());
    });
    auto outcome = attach(kNever);
    answering.join();
    CHECK(!outcome);
    if (expected && outcome.error().err != expected) {
      fprintf(stderr, "%s: %s (%d)\n", what, outcome.error().message.c_str(), outcome.error().err);
      exit(1);
    }
  }
};

void silent_when_attaching() {
  const Stage stage;
  const Mount mount(stage.socket);
  const auto outcome = stage.attach({50, 50});
  CHECK(!outcome && outcome.error().err == ETIMEDOUT);
}

// For example, a mount that is killed while a guest starts. Only the message shows that the mount
// has ended, and that the image is not at fault.
void dies_when_attaching() {
  const Stage stage;
  Mount mount(stage.socket);
  std::thread dying([&] {
    mount.meet(protocol::Kind::kAttach);
    mount.die();
  });
  const auto outcome = stage.attach(kNever);
  dying.join();
  CHECK(!outcome && outcome.error().err == EPROTO);
  CHECK(outcome.error().message.find("the mount ended") != std::string::npos);
}

void takes_no_connections() {
  const Stage stage;
  const Mount mount(stage.socket, 0);
  std::vector<protocol::Descriptor> others;
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  memcpy(address.sun_path, stage.socket.data(), stage.socket.size());
  int outcome;
  do {
    others.emplace_back(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    outcome =
        connect(others.back().number(), reinterpret_cast<sockaddr*>(&address), sizeof address);
  } while (outcome == 0);
  const auto attached = stage.attach({50, 50});
  CHECK(!attached && attached.error().err == EAGAIN);
}

// An application has its own signals, and they interrupt the wait.
void signals_while_it_waits() {
  const Stage stage;
  Mount mount(stage.socket);
  static std::atomic<int> arrived;
  arrived = 0;
  struct sigaction counting {};
  counting.sa_handler = [](int) { arrived++; };
  CHECK(sigaction(SIGUSR1, &counting, nullptr) == 0);
  const pthread_t application = pthread_self();
  std::thread answering([&] {
    mount.meet(protocol::Kind::kAttach);
    for (int sent = 1; sent <= 20; sent++) {
      pthread_kill(application, SIGUSR1);
      while (arrived < sent) sched_yield();
    }
    mount.say(stage.image_with_lock());
  });
  const auto attachment = MUST(stage.attach(kNever));
  answering.join();
  std::thread taking_back([&] { mount.take_back(); });
  attachment->detach();
  taking_back.join();
}

void strange_answers() {
  const Stage stage;
  const auto refused = [](uint32_t value) {
    protocol::Packet answer;
    answer.kind = protocol::Kind::kRefused;
    answer.value = value;
    return answer;
  };
  stage.refuses(
      "a refusal", [&] { return refused(EBUSY); }, EBUSY);
  for (const uint32_t value : {0u, 4096u, 0x80000000u, 0xffffffffu})
    stage.refuses(
        "a refusal for no errno", [&] { return refused(value); }, EPROTO);
  const auto handed = [&](const std::string& text, const std::vector<int>& descriptors) {
    protocol::Packet answer;
    answer.kind = protocol::Kind::kAttached;
    answer.text = text;
    for (const int descriptor : descriptors)
      answer.descriptors.emplace_back(fcntl(descriptor, F_DUPFD_CLOEXEC, 0));
    return answer;
  };
  int pipes[2];
  CHECK(pipe(pipes) == 0);
  const std::string path = stage.image + '\0';
  const protocol::Descriptor folder(open(stage.directory.path().c_str(), O_RDONLY | O_CLOEXEC));
  const protocol::Descriptor unlocked(open(stage.image.c_str(), O_RDWR | O_CLOEXEC));
  stage.refuses(
      "nothing", [&] { return handed("", {}); }, EPROTO);
  stage.refuses(
      "a path without a descriptor", [&] { return handed(path, {}); }, EPROTO);
  stage.refuses(
      "a descriptor without a path", [&] { return handed("", {unlocked.number()}); }, EPROTO);
  stage.refuses(
      "more descriptors than paths",
      [&] {
        return handed(path, {unlocked.number(), pipes[0]});
      },
      EPROTO);
  stage.refuses(
      "a pipe", [&] { return handed(path, {pipes[0]}); }, 0);
  stage.refuses(
      "a directory", [&] { return handed(path, {folder.number()}); }, 0);
  {
    const protocol::Packet elsewhere = stage.image_with_lock();
    stage.refuses(
        "an image without its lock", [&] { return handed(path, {unlocked.number()}); }, EBUSY);
  }
  stage.refuses(
      "a request in place of an answer",
      [&] {
        protocol::Packet answer;
        answer.kind = protocol::Kind::kCut;
        return answer;
      },
      EPROTO);
  close(pipes[0]);
  close(pipes[1]);
}

// Each step of a snapshot is allowed only in the state that the step before has left.
void steps_out_of_order() {
  using protocol::Kind;
  const Stage stage;
  Mount mount(stage.socket);
  const auto attachment = stage.attached(&mount, kNever);
  Session& session = attachment->session();
  auto* memory = static_cast<char*>(MUST(session.map(kSize, PROT_READ | PROT_WRITE, 0)));
  memory[0] = 1;
  for (const Kind step : {Kind::kCut, Kind::kCommit, Kind::kFinish}) mount.ask_in_vain(step);
  mount.ask(Kind::kPrepare, "s");
  for (const Kind step : {Kind::kPrepare, Kind::kCommit, Kind::kFinish, Kind::kDelete})
    mount.ask_in_vain(step);
  mount.ask(Kind::kCut);
  for (const Kind step : {Kind::kPrepare, Kind::kCut, Kind::kFinish, Kind::kDelete})
    mount.ask_in_vain(step);
  mount.ask(Kind::kCommit);
  for (const Kind step : {Kind::kPrepare, Kind::kCut, Kind::kCommit, Kind::kDelete})
    mount.ask_in_vain(step);
  memory[0] = 2;
  mount.ask(Kind::kFinish);
  for (const Kind step : {Kind::kCut, Kind::kCommit, Kind::kFinish}) mount.ask_in_vain(step);
  mount.ask(Kind::kAbort);
  char frozen = 0;
  const auto view = MUST(session.image().view("s"));
  MUST(session.image().read(view.get(), 0, &frozen, 1));
  CHECK(frozen == 1 && memory[0] == 2);
  MUST(session.unmap(memory, kSize));
  std::thread taking_back([&] { mount.take_back(); });
  attachment->detach();
  taking_back.join();
}

void silent_after_the_cut() {
  const Stage stage;
  Mount mount(stage.socket);
  const auto attachment = stage.attached(&mount, {10 * 60 * 1000, 200});
  Session& session = attachment->session();
  auto* memory = static_cast<char*>(MUST(session.map(kSize, PROT_READ | PROT_WRITE, 0)));
  memory[0] = 1;
  mount.ask(protocol::Kind::kPrepare, "never");
  mount.ask(protocol::Kind::kCut);
  memory[4096] = 2;  // waits until the mount is taken for dead
  CHECK(memory[0] == 1);
  mount.wait_for_end();
  CHECK(MUST(session.image().snapshots(false)).empty());
  MUST(session.unmap(memory, kSize));
  attachment->detach();

  OpenOptions reading;
  char bytes[4097];
  MUST(MUST(Image::open(stage.image, reading))->read(nullptr, 0, bytes, sizeof bytes));
  CHECK(bytes[0] == 1 && bytes[4096] == 2);
}

void next_mounts() {
  const Stage stage;
  Mount first(stage.socket);
  const auto attachment = stage.attached(&first, kNever);
  first.die();
  Mount second(stage.socket);
  second.meet(protocol::Kind::kResume);
  protocol::Packet answer;
  answer.kind = protocol::Kind::kStatus;  // which is no answer
  second.say(answer);
  second.meet(protocol::Kind::kResume);  // the monitor repeats it until it gets its answer
  answer.kind = protocol::Kind::kAttached;
  second.say(answer);
  second.ask(protocol::Kind::kStatus);
  second.die();
  Mount third(stage.socket);
  third.meet(protocol::Kind::kResume);
  attachment->detach();  // does not wait for an answer
}

// The attached image stands on a base, which gets another base that was not handed over.
struct ChangedBase {
  Stage stage;
  std::string ground = stage.directory / "ground.pcow";
  std::string other = stage.directory / "other.pcow";
  std::string base = stage.directory / "base.pcow";
  std::string image = stage.directory / "on-base.pcow";
  std::unique_ptr<Image> writer;

  ChangedBase() {
    make(ground, "", 1);
    make(other, "", 2);
    make(base, ground, 3);
    CreateOptions on_base;
    on_base.has_base = true;
    on_base.base = {base, "s", 0};
    MUST(create_image(image, on_base));
    OpenOptions options;
    options.write = true;
    writer = MUST(Image::open(base, options));
  }

  // Each image holds its `value` in a block of its own, and has the snapshot s.
  static void make(const std::string& path, const std::string& on, char value) {
    CreateOptions create;
    create.size = on.empty() ? kSize : 0;
    create.has_base = !on.empty();
    if (create.has_base) create.base = {on, "s", 0};
    MUST(create_image(path, create));
    OpenOptions options;
    options.write = true;
    auto made = MUST(Image::open(path, options));
    const std::string bytes(65536, value);
    MUST(made->write(65536 * static_cast<uint64_t>(value), bytes.data(), bytes.size()));
    MUST(made->snapshot("s"));
    MUST(made->close());
  }

  std::shared_ptr<Attachment> attached(Mount* mount, uint32_t value) const {
    std::thread handing_over([&] {
      mount->meet(protocol::Kind::kAttach);
      protocol::Packet answer;
      answer.kind = protocol::Kind::kAttached;
      answer.value = value;
      for (const std::string& path : {image, base, ground}) add(&answer, path);
      mount->say(answer);
    });
    auto attachment = MUST(stage.attach(kNever, false));
    handing_over.join();
    return attachment;
  }

  // A mapping is read, and then the base stands on a file that was not handed over.
  volatile char* map_and_rebase(Session* session) const {
    auto* memory = static_cast<volatile char*>(MUST(session->map(kSize, PROT_READ, 0)));
    CHECK(memory[3 * 65536] == 3);
    MUST(writer->rebase({other, "s", 0}, true, nullptr));
    return memory;
  }

  static void add(protocol::Packet* packet, const std::string& path) {
    packet->text += path + '\0';
    packet->descriptors.emplace_back(open(path.c_str(), O_RDONLY | O_CLOEXEC));
    CHECK(packet->descriptors.back());
  }
};

void base_that_was_not_handed_over() {
  using protocol::Kind;
  const ChangedBase scene;
  Mount mount(scene.stage.socket);
  const auto attachment = scene.attached(&mount, protocol::kMayWant);
  Session& session = attachment->session();
  volatile char* const memory = scene.map_and_rebase(&session);
  std::atomic<int> found{-1};
  std::thread reader([&] { found = memory[65536]; });
  CHECK(mount.hear().kind == Kind::kWant);
  mount.ask(Kind::kStatus);  // requests continue meanwhile
  // An answer that does not help is none: the monitor asks again.
  protocol::Packet bases;
  bases.kind = Kind::kBases;
  ChangedBase::add(&bases, scene.base);
  mount.say(bases);
  CHECK(mount.hear_answer() == Kind::kDone);
  CHECK(mount.hear().kind == Kind::kWant);
  CHECK(found == -1);
  ChangedBase::add(&bases, scene.other);
  mount.say(bases);
  bases.descriptors.clear();
  CHECK(mount.hear_answer() == Kind::kDone);
  reader.join();
  CHECK(found == 1 && memory[2 * 65536] == 0 && memory[3 * 65536] == 3);
  MUST(session.unmap(const_cast<char*>(memory), kSize));
  attachment->detach();
}

// A mount of an older version does not announce that it knows kWant, and would reject it.
void mount_that_is_not_to_be_asked() {
  using protocol::Kind;
  const ChangedBase scene;
  Mount mount(scene.stage.socket);
  const auto attachment = scene.attached(&mount, 0);
  Session& session = attachment->session();
  volatile char* const memory = scene.map_and_rebase(&session);
  std::atomic<int> found{-1};
  std::thread reader([&] { found = memory[65536]; });
  while (session.statistics().stalled_now == 0) usleep(1000);
  mount.ask(Kind::kStatus);
  // It may send the files nevertheless.
  protocol::Packet bases;
  bases.kind = Kind::kBases;
  for (const std::string& path : {scene.base, scene.other}) ChangedBase::add(&bases, path);
  mount.say(bases);
  bases.descriptors.clear();
  CHECK(mount.hear_answer() == Kind::kDone);
  reader.join();
  CHECK(found == 1);
  MUST(session.unmap(const_cast<char*>(memory), kSize));
  // Descriptors in any other message are not valid.
  bases.kind = Kind::kStatus;
  ChangedBase::add(&bases, scene.base);
  mount.say(bases);
  mount.wait_for_end();
  attachment->detach();
}

// The attached image stands on a lazy one. Faults on remote blocks wait, all others are served.
struct LazyBase {
  Stage stage;
  std::string base = stage.directory / "base.pcow";
  std::string image = stage.directory / "on-base.pcow";
  std::unique_ptr<Image> writer;
  uint64_t layer = 0;

  LazyBase() {
    CreateOptions create;
    create.size = kSize;
    MUST(create_image(base, create));
    OpenOptions options;
    options.write = true;
    writer = MUST(Image::open(base, options));
    const std::string here(65536, 7);
    MUST(writer->write(0, here.data(), here.size()));
    MUST(writer->set_source({{1}}));
    MUST(writer->mark_remote({{1, 0xffff}, {2, 0xffff}, {3, 0xfffe}, {5, 0xffff}}));
    MUST(writer->snapshot("s"));
    layer = MUST(writer->layer_id("s"));
    CreateOptions on_base;
    on_base.has_base = true;
    on_base.base = {base, "s", 0};
    MUST(create_image(image, on_base));
  }

  std::shared_ptr<Attachment> attached(Mount* mount) const {
    std::thread handing_over([&] {
      mount->meet(protocol::Kind::kAttach);
      protocol::Packet answer = stage.image_with_lock(image);
      ChangedBase::add(&answer, base);
      mount->say(answer);
    });
    auto attachment = MUST(stage.attach(kNever));
    handing_over.join();
    return attachment;
  }

  // The monitor asks for one of these blocks; returns the number of the question.
  uint32_t asked(Mount* mount, std::set<uint64_t>* blocks) const {
    const protocol::Packet question = mount->hear();
    CHECK(question.kind == protocol::Kind::kFetch && question.value != 0);
    for (const uint64_t block : *blocks) {
      if (question.text != writer->info().uuid + " " + std::to_string(layer) + " " +
                               std::to_string(block) + " " + base)
        continue;
      blocks->erase(block);
      return question.value;
    }
    CHECK(!"a question for one of these blocks");
    return 0;
  }

  void fill(uint64_t block) const {
    const std::string bytes(65536, static_cast<char>(10 + block));
    CHECK(MUST(writer->fill(layer, block, bytes.data(), bytes.size())) == 1);
  }
};

void answer(Mount* mount, uint32_t number, const std::string& why = {}) {
  protocol::Packet fetched;
  fetched.kind = protocol::Kind::kFetched;
  fetched.value = number;
  fetched.text = why;
  mount->say(fetched);
}

void remote_bytes() {
  using protocol::Kind;
  const LazyBase scene;
  auto mount = std::make_unique<Mount>(scene.stage.socket);
  const auto attachment = scene.attached(mount.get());
  Session& session = attachment->session();
  auto* memory = static_cast<volatile char*>(MUST(session.map(kSize, PROT_READ | PROT_WRITE, 0)));
  std::atomic<int> read{-1};
  std::thread reader([&] { read = memory[65536 + 5]; });
  std::thread writer([&] { memory[2 * 65536 + 4096] = 1; });
  // A mount of an older version, or none, is not asked; the faults wait.
  while (session.statistics().fetching_now != 2) usleep(1000);
  CHECK(session.statistics().stalled_now == 0 && session.statistics().stalls == 0);
  CHECK(memory[0] == 7 && memory[3 * 65536] == 0);  // beside remote sub-blocks of the same block
  memory[6 * 65536] = 3;
  mount->ask(Kind::kMayFetch);
  std::set<uint64_t> open = {1, 2};
  uint32_t first = scene.asked(mount.get(), &open);
  const bool first_is_read = open.contains(2);
  const uint32_t second = scene.asked(mount.get(), &open);
  mount->ask(Kind::kStatus);  // requests continue meanwhile

  // What cannot be fetched now is asked for again, as long as somebody waits for it.
  answer(mount.get(), first, "the registry is away");
  answer(mount.get(), first, "an answer to no question");
  open = {first_is_read ? uint64_t{1} : uint64_t{2}};
  first = scene.asked(mount.get(), &open);
  CHECK(read == -1);
  scene.fill(1);
  answer(mount.get(), first_is_read ? first : second);
  reader.join();
  CHECK(read == 11);

  // The mount dies: the next one is asked.
  mount.reset();
  mount = std::make_unique<Mount>(scene.stage.socket);
  mount->meet(Kind::kResume);
  protocol::Packet attached;
  attached.kind = Kind::kAttached;
  mount->say(attached);
  mount->ask(Kind::kMayFetch);
  open = {2};
  first = scene.asked(mount.get(), &open);
  CHECK(session.statistics().fetching_now == 1);
  scene.fill(2);
  answer(mount.get(), first);
  writer.join();
  CHECK(memory[2 * 65536 + 4096] == 1 && memory[2 * 65536] == 12);
  while (session.statistics().fetching_now) usleep(1000);
  // A block that was filled without the mount's answer: it is tried again, too.
  std::thread waiting([&] { read = memory[5 * 65536]; });
  open = {5};
  (void)scene.asked(mount.get(), &open);
  scene.fill(5);
  waiting.join();
  CHECK(read == 15 && memory[6 * 65536] == 3);
  MUST(session.unmap(const_cast<char*>(memory), kSize));
  std::thread taking_back([&] { mount->take_back(); });
  attachment->detach();
  taking_back.join();
}

}  // namespace

int main() {
  alarm(kHungSeconds);
  silent_when_attaching();
  dies_when_attaching();
  takes_no_connections();
  signals_while_it_waits();
  strange_answers();
  steps_out_of_order();
  silent_after_the_cut();
  next_mounts();
  base_that_was_not_handed_over();
  mount_that_is_not_to_be_asked();
  remote_bytes();
  return 0;
}
