// What stands behind the opaque handles. Each keeps alive what it needs.
#pragma once

#include <memory>

#include "rarefy/engine/session.h"
#include "rarefy/model/model.h"
#include "rarefy/rarefy.h"

struct rarefy_model {
  std::shared_ptr<const rarefy::Model> model;
};

struct rarefy_engine {
  std::shared_ptr<rarefy::Engine> engine;
};

struct rarefy_session {
  rarefy::Session session;
};
