// A clean store and a session in one process, without a mount and a socket in between.
#pragma once

#include <poll.h>
#include <sys/eventfd.h>

#include <atomic>
#include <mutex>
#include <thread>

#include "check.h"
#include "monitor/session.h"
#include "store/clean_store.h"

// Ends before the sessions that it serves are closed; as if its mount had died, for them.
class LocalStore {
 public:
  explicit LocalStore(uint64_t budget)
      : store_(MUST(pcow::CleanStore::start(
            budget, [this](pcow::CleanStore::Answer answer) { take(std::move(answer)); }))) {}
  ~LocalStore() {
    for (const auto& client : clients_) client->end();  // their threads use the store
    store_.reset();
  }

  // The session's image stands on this layer. Returns when the session knows the store.
  void serve(pcow::Session* session, const std::string& path, uint64_t layer) {
    auto client = std::make_unique<Client>();
    client->session = session;
    client->store = store_.get();
    Client* const served = client.get();
    {
      const std::lock_guard lock(lock_);
      clients_.push_back(std::move(client));
      served->number = clients_.size();
    }
    store_->open(served->number, {path, layer, ""});
    served->offered.wait(false);
    served->asking = std::thread([served] { served->ask(); });
  }
  // The process with this session (the first is 1) has ended.
  void forget(uint64_t client) {
    clients_[client - 1]->end();
    store_->forget(client);
  }
  pcow::CleanStore::Figures figures() const { return store_->figures(); }

 private:
  struct Client {
    pcow::Session* session;
    pcow::CleanStore* store;
    uint64_t number;
    int wanted = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    std::atomic<bool> offered{false};
    std::mutex using_session;  // held by the store's thread
    std::atomic<bool> ended{false};
    std::thread asking;

    void ask() {
      while (!ended) {
        pollfd ready = {wanted, POLLIN, 0};
        poll(&ready, 1, -1);
        uint64_t ignored;
        (void)!read(wanted, &ignored, sizeof ignored);
        for (const auto& want : session->shared().take_wants())
          store->want(number, static_cast<uint32_t>(want.slice), static_cast<uint32_t>(want.count));
      }
    }
    void end() {
      {
        const std::lock_guard lock(using_session);
        if (ended.exchange(true)) return;
      }
      session->shared().withdraw();  // it no longer writes to `wanted`
      const uint64_t one = 1;
      (void)!write(wanted, &one, sizeof one);
      if (asking.joinable()) asking.join();
    }
    ~Client() { close(wanted); }
  };

  // On the store's thread.
  void take(pcow::CleanStore::Answer answer) {
    Client* client;
    {
      const std::lock_guard lock(lock_);
      client = clients_[answer.client - 1].get();
    }
    const std::lock_guard lock(client->using_session);
    if (client->ended) return;
    if (answer.kind == pcow::CleanStore::Answer::Kind::kSlices) {
      client->session->take_shared(answer.slice, std::move(answer.segment));
      return;
    }
    CHECK(answer.ok);
    MUST(client->session->offer_store(answer.size, client->wanted));
    client->offered = true;
    client->offered.notify_all();
  }

  std::mutex lock_;                               // guards the next
  std::vector<std::unique_ptr<Client>> clients_;  // before `store_`, whose thread uses them
  std::unique_ptr<pcow::CleanStore> store_;
};
