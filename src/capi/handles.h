// What stands behind the opaque handles. Each keeps alive what it needs.
#pragma once

#include <memory>
#include <string>

#include "rarefy/attention/decode.h"
#include "rarefy/attention/merge.h"
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

struct rarefy_decode_plan {
  rarefy::DecodePlan plan;
  rarefy::DecodeOp op;
  std::string implementation;
};

struct rarefy_merge_plan {
  rarefy::MergePlan plan;
  std::string implementation;
};
